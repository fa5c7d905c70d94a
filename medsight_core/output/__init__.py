"""What an answer leaves on disk: pictures, a page, JSON, masks and a segmentation that other software opens."""
