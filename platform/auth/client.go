package auth

import "context"

// InternalCredentials presents the internal key on every call. It is used
// inside one process or over a network the operator trusts.
type InternalCredentials struct {
	// Key is the shared key.
	Key string
	// RequireTLS refuses to send the key over a connection without TLS.
	RequireTLS bool
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (c InternalCredentials) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{InternalKeyHeader: c.Key}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (c InternalCredentials) RequireTransportSecurity() bool { return c.RequireTLS }
