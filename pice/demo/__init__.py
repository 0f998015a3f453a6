"""What ships for trying PICE with nothing to download: small models of an imaginary atlas, and questions about it."""
