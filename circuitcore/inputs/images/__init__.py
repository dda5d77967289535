"""Images wherever they are kept: folders, an index, a stored data set, tar files; one decoder."""
