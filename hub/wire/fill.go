package wire

import "github.com/mochi-mqtt/server/v2/packets"

// fill sets the codec's packet, which is zero, to say what p says.
func fill(pk *packets.Packet, p Packet, version byte) {
	pk.FixedHeader.Type = byte(p.Type())
	pk.ProtocolVersion = version
	pk.Mods.AllowResponseInfo = true // whether to send it is the caller's decision
	props := &pk.Properties
	switch p := p.(type) {
	case *Connect:
		fillConnect(pk, p)
	case *Connack:
		fillConnack(pk, p)
	case *Ack:
		if p.Kind == TypePubrel {
			pk.FixedHeader.Qos = 1 // the reserved bits, as the codec spells them
		}
		pk.PacketID, pk.ReasonCode = p.ID, byte(p.Code)
		props.ReasonString, props.User = p.Reason, codecUsers(p.User)
	case *Subscribe:
		pk.FixedHeader.Qos = 1
		pk.PacketID = p.ID
		for _, s := range p.Filters {
			pk.Filters = append(pk.Filters, packets.Subscription{
				Filter: s.Filter, Qos: s.QoS,
				NoLocal: s.NoLocal, RetainAsPublished: s.RetainAsPublished, RetainHandling: s.RetainHandling,
			})
		}
		if p.SubID != 0 {
			props.SubscriptionIdentifier = []int{p.SubID}
		}
		props.User = codecUsers(p.User)
	case *Unsubscribe:
		pk.FixedHeader.Qos = 1
		pk.PacketID = p.ID
		for _, f := range p.Filters {
			pk.Filters = append(pk.Filters, packets.Subscription{Filter: f})
		}
		props.User = codecUsers(p.User)
	case *Suback:
		pk.PacketID = p.ID
		for _, c := range p.Codes {
			if version == V311 && c >= UnspecifiedError {
				c = UnspecifiedError // the only refusal of 3.1.1
			}
			pk.ReasonCodes = append(pk.ReasonCodes, byte(c))
		}
		props.ReasonString, props.User = p.Reason, codecUsers(p.User)
	case *Disconnect:
		pk.ReasonCode = byte(p.Code)
		if p.SessionExpiry != nil {
			props.SessionExpiryInterval, props.SessionExpiryIntervalFlag = *p.SessionExpiry, true
		}
		props.ReasonString, props.ServerReference, props.User = p.Reason, p.ServerReference, codecUsers(p.User)
	case *Auth:
		pk.ReasonCode = byte(p.Code)
		props.AuthenticationMethod, props.AuthenticationData = p.Method, p.Data
		props.ReasonString, props.User = p.Reason, codecUsers(p.User)
	}
}

func fillConnect(pk *packets.Packet, p *Connect) {
	name := p.ProtocolName
	if name == "" {
		name = "MQTT"
	}
	if p.Version != 0 {
		pk.ProtocolVersion = p.Version
	}
	pk.Connect = packets.ConnectParams{
		ProtocolName:     []byte(name),
		Clean:            p.CleanStart,
		Keepalive:        p.KeepAlive,
		ClientIdentifier: p.ClientID,
		UsernameFlag:     p.HasUsername || p.Username != "",
		Username:         []byte(p.Username),
		PasswordFlag:     p.HasPassword || len(p.Password) > 0,
		Password:         p.Password,
	}
	pk.Properties = packets.Properties{
		SessionExpiryInterval:     p.SessionExpiry,
		SessionExpiryIntervalFlag: p.SessionExpiry != 0,
		ReceiveMaximum:            p.ReceiveMaximum,
		MaximumPacketSize:         p.MaximumPacketSize,
		TopicAliasMaximum:         p.TopicAliasMaximum,
		RequestProblemInfoFlag:    p.NoProblemInfo,
		AuthenticationMethod:      p.AuthMethod,
		AuthenticationData:        p.AuthData,
		User:                      codecUsers(p.User),
	}
	if p.RequestResponse {
		pk.Properties.RequestResponseInfo = 1
	}
	if p.Will == nil {
		return
	}
	m := &p.Will.Message
	pk.Connect.WillFlag = true
	pk.Connect.WillTopic, pk.Connect.WillPayload = m.Topic, m.Payload
	pk.Connect.WillQos, pk.Connect.WillRetain = m.QoS, m.Retain
	pk.Connect.WillProperties.WillDelayInterval = p.Will.Delay
	if m.Expiry != nil {
		pk.Connect.WillProperties.MessageExpiryInterval = *m.Expiry
	}
	if m.Props != nil {
		props := &pk.Connect.WillProperties
		props.PayloadFormat, props.PayloadFormatFlag = m.Props.Format, m.Props.Format != 0
		props.ContentType, props.ResponseTopic = m.Props.ContentType, m.Props.ResponseTopic
		props.CorrelationData, props.User = m.Props.Correlation, codecUsers(m.Props.User)
	}
}

func fillConnack(pk *packets.Packet, p *Connack) {
	pk.SessionPresent, pk.ReasonCode = p.SessionPresent, byte(p.Code)
	if pk.ProtocolVersion == V311 {
		pk.ReasonCode, _ = returnCode(p.Code)
	}
	pk.Properties = packets.Properties{
		ReceiveMaximum:           p.ReceiveMaximum,
		RetainAvailableFlag:      p.NoRetain,
		MaximumPacketSize:        p.MaximumPacketSize,
		AssignedClientID:         p.AssignedClientID,
		TopicAliasMaximum:        p.TopicAliasMaximum,
		ReasonString:             p.Reason,
		WildcardSubAvailableFlag: p.NoWildcard,
		SubIDAvailableFlag:       p.NoSubscriptionIDs,
		SharedSubAvailableFlag:   p.NoShared,
		ResponseInfo:             p.ResponseInfo,
		ServerReference:          p.ServerReference,
		AuthenticationMethod:     p.AuthMethod,
		AuthenticationData:       p.AuthData,
		User:                     codecUsers(p.User),
	}
	if p.SessionExpiry != nil {
		pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = *p.SessionExpiry, true
	}
	if p.MaximumQoS != nil {
		pk.Properties.MaximumQos, pk.Properties.MaximumQosFlag = *p.MaximumQoS, true
	}
	if p.ServerKeepAlive != nil {
		pk.Properties.ServerKeepAlive, pk.Properties.ServerKeepAliveFlag = *p.ServerKeepAlive, true
	}
}

func codecUsers(from []User) []packets.UserProperty {
	if len(from) == 0 {
		return nil
	}
	to := make([]packets.UserProperty, len(from))
	for i, u := range from {
		to[i] = packets.UserProperty{Key: u.Key, Val: u.Value}
	}
	return to
}
