"""Features to pixels: the pixel decoder, the latent decoders, and their autoencoders."""
