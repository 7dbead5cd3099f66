mkdir -p a/b x/y/z; echo c >a/b/c.txt; echo z >x/y/z/f
