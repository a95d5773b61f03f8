"""ms-swift as a second engine: reads its command lines, starts and monitors its runs."""
