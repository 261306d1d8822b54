"""Services on the internet, one module each, asked by `client`."""
