package rpc

import (
	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"
)

// Check is the fault of a message by the rules of its contract.
func Check(m proto.Message) error {
	v, err := protovalidate.New()
	if err != nil {
		return err
	}
	return (&validation{v: v}).check(m)
}
