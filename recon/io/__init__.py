"""Image files: the only place where the scanner frame meets RAS+."""
