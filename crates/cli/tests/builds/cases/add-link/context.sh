echo f >f; touch -d @20 f; tar -cf a.tar f
