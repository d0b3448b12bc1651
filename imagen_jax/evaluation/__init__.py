"""How good the pictures are: whether they obey their captions, and how far they are from real ones."""
