"""Saliency maps: raw and signed from the network, and apart from that their display."""
