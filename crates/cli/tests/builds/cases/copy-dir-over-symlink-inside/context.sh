mkdir -p tree/lib tree/etc; echo a >tree/lib/a; echo b >tree/etc/b
