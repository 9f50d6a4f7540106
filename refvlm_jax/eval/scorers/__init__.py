"""One module a metric family: (truths, predictions by uid) -> metrics; missing means wrong."""
