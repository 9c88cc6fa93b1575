"""What ``make verify`` runs the tests on: DynamoDB Local and Lambda's own runtime loop."""
