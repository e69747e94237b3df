"""From packed bits to the first convolution's activation and its pooled shortcut."""
