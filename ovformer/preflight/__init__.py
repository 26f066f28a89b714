"""Is this config right? Checks of a run before anything long starts, and of a whole set-up."""
