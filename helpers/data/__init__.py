"""Images with labels, layer maps and groups: phantoms, folders, archives, and the folds they are split into."""
