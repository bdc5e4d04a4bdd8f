"""Builds the decoder of a config: the only place that maps a kind of decoder to its class."""

from blip3o.config.decoder import AnyDecoderConfig
from blip3o.model.decoders.autoencoder import AutoencoderDecoder
from blip3o.model.decoders.base import Decoder
from blip3o.model.decoders.latent import SanaDecoder, SdxlDecoder
from blip3o.model.decoders.pixel import PixelDecoder


def build_decoder(config: AnyDecoderConfig, *, feature_dim: int) -> Decoder:
    """An uninitialized decoder for features with `feature_dim` channels."""
    match config.kind:
        case "pixel":
            return PixelDecoder(config)
        case "sdxl":
            return SdxlDecoder(config, feature_dim=feature_dim)
        case "sana":
            return SanaDecoder(config, feature_dim=feature_dim)
        case "autoencoder":
            return AutoencoderDecoder(config)
