echo a >suid; chmod 4711 suid; echo b >sgid; chmod 2755 sgid; mkdir -m 3775 stick; echo c >noperm; chmod 0 noperm; rm Dockerfile.x 2>/dev/null || true
