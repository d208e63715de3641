// Package clients drives Mixpanel's JavaScript clients, in Node and in a browser,
// against cohortbridge.
package clients
