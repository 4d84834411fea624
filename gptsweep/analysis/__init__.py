"""Turn samples into numbers: metrics, statistics, and the data frames that users and pages read."""
