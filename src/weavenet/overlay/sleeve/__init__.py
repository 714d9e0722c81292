"""Sleeve, Weave's overlay in user space: Ethernet frames in UDP datagrams, for peers that fastdp does not reach."""
