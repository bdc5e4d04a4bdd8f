"""Features to pixels: the pixel decoder, decoders in the latents of an autoencoder, and the autoencoders."""
