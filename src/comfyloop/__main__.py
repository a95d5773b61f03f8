from comfyloop.cli import main

main()
