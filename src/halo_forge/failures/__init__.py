"""What a run still gets wrong, and what rows written against it did: inspect, write 50 to 200 rows, iterate.

validation.py  validation rows, asked of the tuned model     kinds.py     what counts as wrong, and how it is wrong
clusters.py    failures gathered by kind and by prompt       template.py  rows for a person to fill in
inspection.py  `halo-forge inspect RUN`                      records.py   what is written
added_rows.py  are the added rows fit to be trained?         iteration.py `halo-forge iterate RUN --rows FILE`
outcome.py     what the rows did, item by item               page.py      failures.html

Only validation rows are looked at. The holdout stays what it was for: to say, unseen, whether it got better.
"""
