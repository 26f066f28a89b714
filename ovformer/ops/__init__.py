"""Operations on tensors that know nothing of models: deformable attention and mask resizing."""
