"""The training objective: matching of queries with annotations, and the losses."""
