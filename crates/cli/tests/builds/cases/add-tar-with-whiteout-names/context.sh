: >.wh.passwd; touch -d @20 .wh.passwd; tar -cf a.tar .wh.passwd; rm .wh.passwd
