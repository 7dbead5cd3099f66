echo f >f; touch -d @20 f; tar --owner=0 --group=0 --numeric-owner --mode=644 -cf a.tar f; touch -d @21 a.tar
