"""What is in a data set: what cannot be read, what is double, what captions speak of and whom they leave out."""
