"""Speed of our U-Net beside that of other libraries, on the same work and the same cores."""
