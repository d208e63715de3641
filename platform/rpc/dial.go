package rpc

import (
	"errors"

	"buf.build/go/protovalidate"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/stats"
)

// notHealth keeps health checks out of traces.
func notHealth(i *stats.RPCTagInfo) bool {
	return len(i.FullMethodName) < 16 || i.FullMethodName[:16] != "/grpc.health.v1."
}

func asValidation(err error, target **protovalidate.ValidationError) bool {
	return errors.As(err, target)
}

// serviceConfig retries only what gRPC itself knows was not processed, balances
// over all addresses, and leaves deadlines to the callers.
const serviceConfig = `{"loadBalancingConfig":[{"round_robin":{}}]}`

// Dial connects to a service. creds nil means plaintext; perRPC may be nil.
func Dial(target string, creds credentials.TransportCredentials, perRPC credentials.PerRPCCredentials, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	o := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler(otelgrpc.WithFilter(notHealth))),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessageBytes), grpc.MaxCallSendMsgSize(MaxMessageBytes)),
		grpc.WithDefaultServiceConfig(serviceConfig),
	}
	if perRPC != nil {
		o = append(o, grpc.WithPerRPCCredentials(perRPC))
	}
	return grpc.NewClient(target, append(o, opts...)...)
}
