"""Convolution as one matrix product: weights on the left, shifted copies of all pixels on the right.

`lax.conv_general_dilated` makes SPU cut one slice for each output pixel, and padding with a public zero costs a message. Here
there are few operations, each of which costs SPU time whatever its size: all shifts by columns, then all of those by rows.
"""
