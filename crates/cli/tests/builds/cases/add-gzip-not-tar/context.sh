echo hello >f; gzip -nc f >f.gz
