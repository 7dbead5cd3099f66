mkdir t; echo f >t/f; mkdir -m 700 t/d; ln -s f t/l; ln t/f t/h; chown 33:50 t/f; touch -h -d @20 t/f t/d t/l; tar --sort=name -C t -cf a.tar . ; rm -r t; echo b >b.txt
