// Package gen holds what is generated from proto/: Go, gateway and OpenAPI.
package gen

import _ "embed"

// OpenAPI is the OpenAPI 2.0 document of the REST API, as JSON.
//
//go:embed openapi/cohortbridge.swagger.json
var OpenAPI []byte
