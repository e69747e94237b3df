"""The stem and the convolution behind it; a CPU draws the activation between them again in the backward."""
