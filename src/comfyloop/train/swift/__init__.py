"""ms-swift as a second engine: its command line read, its runs started and watched."""
