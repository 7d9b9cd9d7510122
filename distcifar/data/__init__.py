"""Data: from labelled images, wherever they lie, to batches on the device."""
