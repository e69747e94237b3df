"""From text to batches, in this order.

| module                                      | decides                                                           |
|---------------------------------------------|-------------------------------------------------------------------|
| `text_files`, `decompression`, `demo_corpus`| which files are read, what a document is, how much is read at once|
| `excluded_characters`                       | which sentences a model must never see                            |
| `sentences`                                 | where text is cut                                                 |
| `store_format`, `store_writer`, `token_store`| how token ids lie on disk                                        |
| `sentence_pairs`                            | held-out documents; which sentences make a pair                   |
| `masking`                                   | the masking rate, what stands in a masked place, labels           |
| `permutation`, `random_streams`             | order and chance, from the seed alone                             |
| `pretraining`, `collator`                   | samples; batches                                                  |
"""
