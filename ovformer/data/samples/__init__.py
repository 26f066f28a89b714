"""From a record of a data set to an element of the batch."""
