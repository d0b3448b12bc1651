"""How attributes come out that prompts leave open: shares of groups among images, the training data's, and a target."""
