"""Sources of images, decoding, caches and the loader: everything between files and batches on the device."""
