mkdir d; echo f >d/f; touch -d @20 d/f d; tar -cf a.tar d; rm -r d
