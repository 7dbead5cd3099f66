echo f >f; touch -d @20 f; tar -cf a.tar f; gzip -nc a.tar >g.tar.gz; bzip2 -c a.tar >b.tar.bz2; zstd -qc a.tar >z.tar.zst; cp g.tar.gz disguised.txt
