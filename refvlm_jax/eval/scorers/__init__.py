"""One module a metric family: (truths, predictions by uid) -> metrics; a missing answer is wrong."""
