{ printf 'FROM scratch\nLABEL a='; head -c 70000 /dev/zero | tr '\0' a; echo; } >Dockerfile
