"""Operations on tensors, independent of models: deformable attention, masks, linear layers."""
