"""For trying PICE with nothing to download: settings for small models of an imaginary atlas, and questions about it."""
