"""The training forward pass of Llama-like decoders with written-out gradients: attention, pieces, head, decoder."""
