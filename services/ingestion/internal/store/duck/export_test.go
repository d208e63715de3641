package duck

// When is the SQL that reads a JSON value of an event as a time.
var When = when
