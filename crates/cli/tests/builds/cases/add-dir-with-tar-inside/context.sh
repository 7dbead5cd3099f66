mkdir dir; echo f >f; touch -d @20 f; tar --owner=0 --group=0 --numeric-owner --mode=644 -cf dir/in.tar f
